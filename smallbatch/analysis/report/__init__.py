"""Draw the figures of a report, and write its page, tables and summary."""
