"""The analysis of a whole recording: one task per stretch of snapshots, results kept beside the recording."""
