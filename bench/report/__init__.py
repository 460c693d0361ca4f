"""What was measured, as records that are kept in a file, tables for the terminal and Markdown, a page and plots."""
