"""The pictures of each lesson, drawn from the arrays that it computed."""
