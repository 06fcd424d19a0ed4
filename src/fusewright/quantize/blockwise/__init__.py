"""NVFP4 and MXFP8: blocks along the inputs of a Linear, scaled at run time where computed."""
