"""The measurements, a file each: from a point to rows of a table. `bnsmooth_cli.kinds` lists them."""
