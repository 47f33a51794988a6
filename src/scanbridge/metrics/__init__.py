"""What a number means: functions of arrays."""
