"""The same network trained in the ways that people would pick, each as its documentation has a careful user write it.

A module each, with one function `fit(data, epochs, done)`: `data` has the pixels `(n, 784) float32` and labels of both
splits and the parameters to start from, by torch's names; `done(accuracy)` is told after every epoch's test pass, in
[0, 1].
"""
