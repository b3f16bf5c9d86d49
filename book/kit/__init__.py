"""What only the pages of the book use: drawing, the ladder, sliders, the brush, publishing, the page in the browser."""
