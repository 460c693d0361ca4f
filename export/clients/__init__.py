"""Examples of programs that run an exported file; `export.deploy` copies them into the folder that it writes."""
