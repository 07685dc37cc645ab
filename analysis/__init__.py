"""From stored tables to statistics, figures and a report. Nothing here loads a model.

study.load -> frontier, objective, compute, reward_model (DataFrame -> DataFrame)
           -> findings (sentences) and plots (DataFrame -> Figure) -> report.write_report
"""
