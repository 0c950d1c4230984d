"""The harvest: look at orders, fetch certificates, and the loops that do it over and over."""
