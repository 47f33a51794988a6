"""The methods by name: data only, so that listing them imports nothing heavy."""

METHODS: dict[str, str] = {
    "regression": "scanbridge.methods.regression",
    "bbdm": "scanbridge.methods.bbdm",
    "ct2mri": "scanbridge.methods.ct2mri",
    "rlbcd": "scanbridge.methods.rlbcd",
}
