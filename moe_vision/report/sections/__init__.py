"""The parts of the page; each turns a run into HTML, and says what is missing."""
