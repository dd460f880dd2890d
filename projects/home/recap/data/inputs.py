"""Finds the files that the configuration of a data set selects."""

import dataclasses
import logging
from collections.abc import Sequence

from common.reader.dated_folders import dated_files
from common.reader.files import DataError, Files, matching_files
from common.reader.periods import DAY, HOUR
from projects.home.recap.data.config import DatasetConfig

logger = logging.getLogger(__name__)

_CONVERT = "Convert TFRecords first: python -m projects.home.recap.tools.convert (docs/convert.md)"

# Maximum number of folders listed in a message.
_MAX_LISTED = 10


def find_files(config: DatasetConfig, key_path: str) -> Files:
    """Find the files of `inputs`, or of the range of days or hours, up to num_files_to_keep of them.

    Logs a warning that lists the missing days or hours if their number is tolerated.

    Args:
      config: configuration of the data set.
      key_path: path of `config` within the whole configuration, for messages.

    Raises:
      DataError: there are no files, a file is not Parquet, or more days or hours are missing than tolerated.
    """
    if (days := config.explicit_date_inputs) is not None:
        files, missing = dated_files(days.data_root, DAY.parse(days.end_date), days.days, DAY)
        where, count = f"{key_path}.explicit_date_inputs", f"{days.days} days"
        _check_missing(missing, files, where, count, "num_missing_days_tol", days.num_missing_days_tol)
    elif (hours := config.explicit_datetime_inputs) is not None:
        files, missing = dated_files(hours.data_root, HOUR.parse(hours.end_datetime), hours.hours, HOUR)
        where, count = f"{key_path}.explicit_datetime_inputs", f"{hours.hours} hours"
        _check_missing(missing, files, where, count, "num_missing_hours_tol", hours.num_missing_hours_tol)
    else:
        assert config.inputs is not None  # exactly one of the three is set
        files = matching_files(config.inputs)
        if records := [file for file in files.paths if file.suffix in (".gz", ".tfrecord", ".tfrecords")]:
            raise DataError(f"{key_path}.inputs: {records[0]} is not a Parquet file. {_CONVERT}")
    return dataclasses.replace(files, paths=files.paths[: config.num_files_to_keep])


def _check_missing(missing: Sequence[str], files: Files, where: str, count: str, key: str, tolerated: int) -> None:
    if not missing:
        return
    listed = ", ".join(missing[:_MAX_LISTED])
    if len(missing) > _MAX_LISTED:
        listed += f" and {len(missing) - _MAX_LISTED} more"
    problem = f"{where}: {len(missing)} of {count} have no *.parquet file in {files.description}"
    if not files.paths:
        raise DataError(f"{problem}, so there is nothing to read. {_CONVERT}. Missing: {listed}")
    if len(missing) > tolerated:
        raise DataError(f"{problem}, but {key} is {tolerated}. Add the files or raise {key}. Missing: {listed}")
    logger.warning("%s; %s allows %d. Missing: %s", problem, key, tolerated, listed)
