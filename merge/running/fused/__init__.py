"""Elementwise work as one compiled loop over the stored numbers: traced once, written as C, checked against
the eager code before it is used. Everything here may say no, and then the eager code does the work.
"""
