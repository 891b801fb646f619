"""Models in the catalog: versions, champions, the reasons for them, and what was learned."""
