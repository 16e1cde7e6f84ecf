"""`mmjax report`: one HTML page about one or several runs."""

from mmjax.report.page import report
from mmjax.report.subject import Choice
