"""What each verb of the command line does with its options. Heavy imports happen in the verb."""
