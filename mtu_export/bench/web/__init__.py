"""A page that measures an ONNX bundle in a browser, and the server that a phone opens it from."""
