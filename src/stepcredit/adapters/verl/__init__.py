"""verl: ``algorithm.adv_estimator=stepcredit_pass`` in an ordinary config, with options under ``algorithm.stepcredit``.

verl finds `plugin` by its entry point in the driver and in every Ray worker; nothing of verl's is imported before verl
itself imports it. Three registries of verl's are used: estimators, trainers (which bring the columns that an estimator
may need), and reward managers (which bring the process signal and the format beside the outcome).
"""
