"""Any ONNX graph in, the places worth watching and the same graph with those places as outputs out.

Needs neither torch nor a GPU.
"""
