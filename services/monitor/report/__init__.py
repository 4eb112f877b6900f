"""The report of a span: `content` gathers what there is to say, the other modules say it.

content    series by section, versions, events: one `Report`, of one moment of the history
html       one self-contained page, with `svg` plots and `style`
markdown   the same words and tables, without plots
flat       every series as rows: CSV and Parquet
boards     the same as a TensorBoard file
"""
