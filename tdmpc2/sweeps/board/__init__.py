"""The web page of a sweep: what is read, what is shown of it, and the page that shows it."""
