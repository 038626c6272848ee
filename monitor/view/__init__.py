"""From events to what a viewer sees, and its picture in a terminal."""
