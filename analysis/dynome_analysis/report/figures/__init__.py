"""Plain functions from labelled data to a Bokeh figure, one module per question."""
