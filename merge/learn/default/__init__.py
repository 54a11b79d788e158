"""The calibration set that is shipped: see README.md beside this file for every text's source and licence."""
