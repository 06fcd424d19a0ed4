"""Reports for people: tables and texts that the command line prints."""
