"""Train a population of settings and seeds: `python -m fmnist_jax.sweep`."""

import itertools
import sys
from dataclasses import replace

import jax

from fmnist import command
from fmnist.command import parse, say
from fmnist.data import load_dataset
from fmnist.files import write_atomically
from fmnist.runs.environment import Environment, describe_environment
from fmnist.runs.folders import check_folder
from fmnist_jax import programs, train
from fmnist_jax.sweep import devices, hosts, report
from fmnist_jax.sweep.options import SweepOptions
from fmnist_jax.sweep.training import train_members

NAME = "fmnist_jax.sweep"
JSON, PICTURE = "sweep.json", "sweep.png"


def main() -> None:
    options = parse(SweepOptions, sys.argv[1:], NAME, "Train many models on FashionMNIST at once.")
    # What may fail in one process only comes before they join: the others would wait for it in vain.
    if options.output is not None:
        check_folder(options.output, (JSON, PICTURE), options.overwrite)
    dataset = load_dataset(options.data)
    devices.split_cpu()
    programs.keep()
    if options.distributed or options.processes > 1:
        hosts.join(NAME, options)
    mesh = devices.find_mesh(options.device)
    if options.distributed or options.processes > 1:
        hosts.agree(repr(replace(options, process=0, data=None, output=None, overwrite=False)) + dataset.sha256)
    processes, is_first = jax.process_count(), jax.process_index() == 0
    memory = devices.free_memory(mesh) if options.memory is None else int(options.memory * 2**30)
    device = devices.describe(mesh)
    environment = Environment("jax", device, "highest", train.cores())
    if is_first:
        print(f"device: {device}, {processes} process{'es' * (processes > 1)}", file=sys.stderr)
        print(f"data: {dataset.name} ({dataset.source}), SHA-256 {dataset.sha256[:16]}…", file=sys.stderr)
        print(f"members: {len(options.settings)} settings x {len(options.all_seeds)} seeds", file=sys.stderr)

    data = devices.place_data(dataset, mesh)
    members = []
    for _, settings in itertools.groupby(options.settings, lambda setting: setting.structure):
        settings_of = list(settings)
        experiments = [replace(setting, seed=seed) for setting in settings_of for seed in options.all_seeds]
        members += train_members(experiments, data, mesh, memory)
    if is_first:
        summaries = report.summarise(members)
        if options.output is not None:
            described = describe_environment(environment, dataset)
            content = report.as_json(members, summaries, described)
            write_atomically(options.output / JSON, content)
            write_atomically(options.output / PICTURE, report.draw(summaries, dataset.name))
        say(*report.table(summaries))


if __name__ == "__main__":
    sys.exit(command.run(main, NAME))
