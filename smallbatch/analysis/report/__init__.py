"""The report: findings, figures, tables and the page."""
