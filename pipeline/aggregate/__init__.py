"""From shards to a spectra file, by Dask."""
