"""Per-sample gradients: of a whole batch at once, verified against a loop over single samples.

The way of a model through ``fisher_information``, from file to file:

1. ``per_sample`` enters evaluation mode and runs ``second_moments`` (or
   ``gaussian_copula``, or the sums of ``kronecker``) over the
   batches of a ``PerSampleGradients``.
2. A network that is new gets a route for each parameter from ``dispatch``, which tries those of
   ``routes`` on two samples; one that is known has them in a cache (``cache_key``).
3. For each batch ``capture`` runs one forward and one backward pass, from which a
   ``GradSample`` computes gradients a few
   samples at a time: by ``closed_form`` (the ``grad_samplers`` in the ``registry``), by
   ``vmap``, or by the ``loop``.
4. ``verification`` compares some samples of the first batch with the loop, where that is due.
   Where they differ the work begins again with other routes, at last with the loop alone.
"""
