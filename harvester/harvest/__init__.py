"""The harvest: check orders, fetch certificates, track, buy, verify; the steps of every loop."""
