"""Layer norm, root mean square norm and group norm."""
