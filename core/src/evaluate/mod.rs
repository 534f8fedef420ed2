//! Perplexity and sampling.
