"""The parts of the page. Each turns a run into HTML and says what is missing."""
