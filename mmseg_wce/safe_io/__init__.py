"""Files from anybody: read without executing anything in them, and written so that no half file is ever seen."""
