"""The paper's figures and claims: `make paper`, or `python -m reproduction SCALE`, fills docs/reproduction/.

scales.py says what is trained and measured, figures.py what is shown of it, gather.py takes the tables out of the
studies, page.py draws and writes. Nothing here measures or judges: that is bnsmooth's.
"""
