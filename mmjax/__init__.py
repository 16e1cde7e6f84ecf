"""mmjax: train one model over speech, images and text, with nothing spent on padding."""

__version__ = "0.1.0"
