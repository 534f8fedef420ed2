//! What each tensor site becomes: format, granularity, symmetry, observer. A scheme never names an algorithm.
