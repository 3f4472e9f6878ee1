"""Keras 3 on JAX: compile and fit."""

import os

os.environ["KERAS_BACKEND"] = "jax"

import keras

from benchmarks.peers.data import BATCH_SIZE, LR, Data, Done


class Told(keras.callbacks.Callback):
    def __init__(self, done: Done) -> None:
        super().__init__()
        self.done = done

    def on_epoch_end(self, epoch, logs=None):
        self.done(logs["val_accuracy"])


def fit(data: Data, epochs: int, done: Done) -> None:
    model = keras.Sequential([keras.Input((784,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(10)])
    model.set_weights([tensor.T for tensor in data.start.values()])
    model.compile(
        optimizer=keras.optimizers.SGD(LR),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(
        data.images,
        data.labels,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        validation_data=(data.test_images, data.test_labels),
        validation_batch_size=BATCH_SIZE,
        callbacks=[Told(done)],
    )
