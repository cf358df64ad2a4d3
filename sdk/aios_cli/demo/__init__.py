"""The demo: the same load under round robin and under FIFO, measured and compared id for id."""
