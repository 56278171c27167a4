"""The paper's figures and claims: `make paper`, or `python -m reproduction SCALE`, writes docs/reproduction/.

scales.py defines the studies, and figures.py the figures. gather.py collects the tables from the studies. page.py draws
the figures and writes the page. bnsmooth does all measuring and judging.
"""
