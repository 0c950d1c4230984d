"""The harvester's rules, pure: no input or output, no clock, no logging."""
