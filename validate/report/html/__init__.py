"""The HTML report: one page, drawn without network or libraries."""
