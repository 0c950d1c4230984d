"""Where certificates are kept: their names, the check that they are whole, the folder."""
