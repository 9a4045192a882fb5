"""profile: a checkpoint -> table.json, what each piece of its UNet costs on a device (section 3, Fig. 2, Table 1)."""
