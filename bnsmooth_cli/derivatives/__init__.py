"""Derivatives of a loss: Hessian products, eigenvalues, Taylor polynomials, and the linear network's fast path."""
