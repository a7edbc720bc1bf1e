"""From results to summary, figures and page."""
