"""Passes over the memory of many weights at once, compiled by Numba (the extra ``fast``); read from the top down:

- :mod:`~weightsmith_plugins.native.compiling` says whether there is a compiled function for these tensors;
- :mod:`~weightsmith_plugins.native.one_pass` has the functions of constraints on norms, of penalties and of gradient
  editors, and :mod:`~weightsmith_plugins.native.simplices` that of constraints on sums;
- :mod:`~weightsmith_plugins.native.addresses` finds where in memory the tensors are, for which they may be called;
- :mod:`~weightsmith_plugins.native.row_norms` and :mod:`~weightsmith_plugins.native.pointers` read what is there.
"""
