"""Where a review's files go: a table as CSV, pictures, and the report, which a sweep's MLflow run gets as well."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from filelock import Timeout

from infra.address import absolute
from infra.disk import write_whole
from infra.errors import UserError
from infra.tracking import Tracker, destination_in
from pipeline.record import training_lock
from pipeline.review.groups import Group
from pipeline.review.rows import ALWAYS, DIRECTORY, Row, when

NOTE, OURS = "mlflow.note.content", "Reviewed"  # the text at the top of a run's page, and how ours begins


def write(file: Path, text: str) -> Path:
    """Write a file whole, and its folder. Raises UserError."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, text)
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror}); choose another place") from None
    return file


def write_csv(file: Path, rows: Sequence[Row], columns: Sequence[str] = ()) -> Path:
    """A line a run: the columns asked for, or every parameter and every metric that any of them has."""
    params = dict.fromkeys(key for row in rows for key in row.params)
    metrics = dict.fromkeys(sorted(key for row in rows for key in row.metrics))
    keys = columns or [*ALWAYS, *params, *metrics]
    sweeps = {row.identity: row.name for row in rows}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["run_id", "sweep", *keys])
            for row in rows:
                values = (when(row.start) if key == "start" else row.fields.get(key, "") for key in keys)
                writer.writerow([row.run_id, sweeps.get(row.parent, "") if row.parent else "", *values])
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror}); choose another place") from None
    return file


def write_pictures(folder: Path, pictures: Mapping[str, Mapping[str, bytes]]) -> list[Path]:
    """FOLDER/GROUP-NAME.png of each. Raises UserError."""
    files = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for group, drawn in pictures.items():
            for name, png in drawn.items():
                files.append(folder / f"{group.replace('/', '_').replace(' ', '-')}-{name}.png")
                files[-1].write_bytes(png)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); choose another place") from None
    return files


def home(group: Group) -> Path | None:
    """The directory on this machine from which a sweep was started; None where it is not here."""
    if group.parent is None:
        return None
    told = [Path(group.parent.tags[DIRECTORY])] if DIRECTORY in group.parent.tags else []
    told += [Path(row.tags[DIRECTORY]).parent for row in group.rows[:1] if DIRECTORY in row.tags]
    for directory in told:
        where = destination_in(directory)
        if where and where.identity == group.parent.identity:
            return directory
    return None


def attach(file: Path, groups: Sequence[Group], uri: str) -> str:
    """Log a report to the MLflow run of the only sweep in it, through the journal in its directory, and its best trial
    as the run's description where nobody else has written one. Returns a sentence on how that went."""
    sweeps = [group for group in groups if group.parent]
    if len(sweeps) != 1:
        return f"not logged to MLflow: the report is of {len(sweeps)} sweeps; choose one with --filter NAME"
    (group,) = sweeps
    directory = home(group)
    where = destination_in(directory) if directory else None
    if directory is None or where is None or group.parent is None:
        return f"not logged to {group.name}: its directory is not on this machine"
    if group.parent.status == "RUNNING":
        return f"not logged to {group.name}: it is still at work; review it again when it has ended"
    if absolute(where.uri) != absolute(uri):
        return f"not logged to {group.name}: its record is kept in {where.uri}"
    try:
        with training_lock(directory):
            tracker = Tracker(directory, where, running=False)
            tracker.artifact(file)
            if group.parent.tags.get(NOTE, OURS).startswith(OURS):
                tracker.tags({NOTE: f"{OURS}: {file.name} among the artifacts; {group.sentence}"})
            left = tracker.close()
    except Timeout:
        return f"not logged to {group.name}: another process is at work in {directory}"
    if left.pending:
        return f"to be logged to {group.name}: MLflow did not take it yet ({left.error}); --sync delivers it"
    return f"logged to {group.name} as {file.name}"
