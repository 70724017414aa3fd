"""The small file: its format, its command line, and the two networks that come with the code."""
