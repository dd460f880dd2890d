"""The files that a data set's configuration chooses."""

import dataclasses
import logging
from collections.abc import Sequence

from common.reader.dated_folders import DAY, HOUR, dated_files
from common.reader.files import DataError, Files, matching_files
from projects.home.recap.data.config import DatasetConfig

logger = logging.getLogger(__name__)

_CONVERT = "TFRecords are converted first: python -m projects.home.recap.tools.convert (docs/convert.md)"

# Folders that a message lists.
_LISTED = 10


def find_files(config: DatasetConfig, path: str) -> Files:
    """Finds the files of `inputs`, or of the days or hours, the first num_files_to_keep of them.

    A warning lists the days or hours that are missing where so many are tolerated.

    Args:
      config: of the data set.
      path: of `config` within the whole configuration, for messages.

    Raises:
      DataError: there are no files, or more days or hours are missing than are tolerated.
    """
    if (days := config.explicit_date_inputs) is not None:
        files, missing = dated_files(days.data_root, DAY.parse(days.end_date), days.days, DAY)
        place = f"{path}.explicit_date_inputs"
        _check_missing(missing, files, place, f"{days.days} days", "num_missing_days_tol", days.num_missing_days_tol)
    elif (hours := config.explicit_datetime_inputs) is not None:
        files, missing = dated_files(hours.data_root, HOUR.parse(hours.end_datetime), hours.hours, HOUR)
        place, count = f"{path}.explicit_datetime_inputs", f"{hours.hours} hours"
        _check_missing(missing, files, place, count, "num_missing_hours_tol", hours.num_missing_hours_tol)
    else:
        assert config.inputs is not None  # one of the three is
        files = matching_files(config.inputs)
        if records := [file for file in files.paths if file.suffix in (".gz", ".tfrecord", ".tfrecords")]:
            raise DataError(f"{path}.inputs: {records[0]} is no Parquet file. {_CONVERT}")
    return dataclasses.replace(files, paths=files.paths[: config.num_files_to_keep])


def _check_missing(missing: Sequence[str], files: Files, place: str, of: str, key: str, tolerated: int) -> None:
    if not missing:
        return
    listed = ", ".join(missing[:_LISTED])
    if len(missing) > _LISTED:
        listed += f" and {len(missing) - _LISTED} more"
    found = f"{place}: {len(missing)} of {of} have no *.parquet file in {files.description}"
    if not files.paths:
        raise DataError(f"{found}; nothing is left to read. Looked for: {listed}. {_CONVERT}")
    if len(missing) > tolerated:
        raise DataError(f"{found}; {key} tolerates {tolerated}: add the files, or raise it. Missing: {listed}")
    logger.warning("%s; %s tolerates %d. Missing: %s", found, key, tolerated, listed)
