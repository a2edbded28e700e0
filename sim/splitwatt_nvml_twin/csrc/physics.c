/*
 * What one GPU does with time. Pure: a record and a moment in, the record of that moment out.
 *
 *   wanted     U = idle + (demand - idle) * h(clock) / h(demand clock);  h(x) = x^e above the voltage floor v, v^(e-1) x below
 *   ceiling    c follows the enforced limit L with the controller's reaction time while U > L; while U <= L it opens
 *              towards 1.1 * max limit with the (slow) release time, so a load step after a quiet time overshoots
 *              L briefly, and repeated spikes cannot
 *   power      p' = (min(U, c) - p) / lag          energy' = p
 *
 * Between the moments where U, L or the branch of min() change, min(U, c) = a + b exp(-t/s), so p and its integral have
 * closed forms (k = s / (s - lag)):
 *   p(t) = a + k b exp(-t/s) + (p0 - a - k b) exp(-t/lag)
 *   E(t) = a t + k b s (1 - exp(-t/s)) + (p0 - a - k b) lag (1 - exp(-t/lag))
 *
 * The power sensor looks for the last 25 ms of every 100 ms; one second of those periods' true energy makes the average.
 */
#include "twin.h"

#include <math.h>
#include <string.h>

static const double CEILING_OPEN = 1.1;         /* of the largest limit */
static const double IDLE_MARGIN_W = 0.5;        /* a demand this close to idle is no load */
static const double LONG_STRETCH_S = 1.0;
static const int64_t SENSOR_PERIOD_NS = 100000000;
static const int64_t SENSOR_WINDOW_NS = 25000000;
static const int64_t REPLAY_NS = 1500000000;    /* sensor periods older than this no longer show in any reading */
enum { MAX_SEGMENTS = 16 };                     /* branch changes inside one sensor period: at most four happen */

static double curve(const struct twin_model *model, double x)
{
    if (x >= model->voltage_floor)
        return pow(x, model->power_exponent);
    return pow(model->voltage_floor, model->power_exponent - 1.0) * x;
}

static double inverse_curve(const struct twin_model *model, double y)
{
    double floor = model->voltage_floor;
    if (y >= pow(floor, model->power_exponent))
        return pow(y, 1.0 / model->power_exponent);
    return y / pow(floor, model->power_exponent - 1.0);
}

bool twin_is_idle(const struct twin_model *model, const struct twin_gpu *gpu)
{
    return gpu->demand_w <= model->idle_w + IDLE_MARGIN_W;
}

static uint32_t allowed_mhz(const struct twin_gpu *gpu)
{
    uint32_t mhz = gpu->demand_mhz;
    if (gpu->lock_max_mhz) {
        if (mhz > gpu->lock_max_mhz)
            mhz = gpu->lock_max_mhz;
        if (mhz < gpu->lock_min_mhz)
            mhz = gpu->lock_min_mhz;
    }
    return mhz;
}

static double fraction(const struct twin_model *model, uint32_t mhz)
{
    return (double)mhz / model->max_clock_mhz;
}

uint32_t twin_enforced_mw(const struct twin_gpu *gpu)
{
    if (gpu->outside_mw && gpu->outside_mw < gpu->management_mw)
        return gpu->outside_mw;
    return gpu->management_mw;
}

void twin_retarget(const struct twin_model *model, struct twin_gpu *gpu)
{
    if (twin_is_idle(model, gpu) || gpu->demand_mhz == 0) {
        gpu->uncapped_w = gpu->demand_w;
        return;
    }
    double wanted = curve(model, fraction(model, gpu->demand_mhz));
    double allowed = curve(model, fraction(model, allowed_mhz(gpu)));
    gpu->uncapped_w = model->idle_w + (gpu->demand_w - model->idle_w) * allowed / wanted;
}

/* One stretch of time in which nothing but the two exponentials happens. */
static double segment(const struct twin_model *model, struct twin_gpu *gpu, double dt)
{
    double wanted = gpu->uncapped_w;
    /* No limiter can stop the leakage, nor what a cap does not slow: it acts on the cores' clock, not on memory. */
    double limit = fmax(twin_enforced_mw(gpu) / 1000.0, fmax(model->idle_w, gpu->floor_mw / 1000.0));
    double open = CEILING_OPEN * model->max_limit_mw / 1000.0;
    double ceiling = gpu->ceiling_w, goal, lag;

    if (wanted > limit) {
        goal = limit;
        lag = model->cap_reaction_s;
    } else {
        goal = open;
        lag = ceiling < limit ? model->cap_reaction_s : model->cap_release_s;
        if (ceiling < limit) {
            double until = lag * log((ceiling - goal) / (limit - goal));
            if (until <= dt) /* at the limit the controller stops hurrying */
                dt = until;
        }
    }
    bool bound = ceiling < wanted || (ceiling == wanted && goal < wanted);
    bool crosses = (ceiling < wanted && goal > wanted) || (ceiling > wanted && goal < wanted);
    double end = goal + (ceiling - goal) * exp(-dt / lag);
    if (crosses) {
        double until = lag * log((ceiling - goal) / (wanted - goal));
        if (until <= dt) {
            dt = until;
            end = wanted;
        }
    }

    double a = bound ? goal : wanted, b = bound ? ceiling - goal : 0.0;
    double k = lag / (lag - model->power_lag_s), tau = model->power_lag_s;
    double slow = exp(-dt / lag), fast = exp(-dt / tau), rest = gpu->power_w - a - k * b;
    double before_j = gpu->energy_j;
    gpu->energy_j += a * dt + k * b * lag * (1.0 - slow) + rest * tau * (1.0 - fast);
    gpu->power_w = a + k * b * slow + rest * fast;

    /* Temperature needs no more than this: over a short stretch the mean power drives it, over a long one the last. */
    double mean_w = dt > LONG_STRETCH_S || dt <= 0.0 ? gpu->power_w : (gpu->energy_j - before_j) / dt;
    double settled_c = model->ambient_c + model->kelvin_per_watt * mean_w;
    gpu->temperature_c = settled_c + (gpu->temperature_c - settled_c) * exp(-dt / model->thermal_lag_s);
    if (bound)
        gpu->capped_s += dt;
    /* exp() and log() round: land exactly on the level that ended the stretch, or it would never end. */
    if (fabs(end - limit) < 1e-9)
        end = limit;
    gpu->ceiling_w = end;
    return dt;
}

static void run(const struct twin_model *model, struct twin_gpu *gpu, int64_t until_ns)
{
    double left = (double)(until_ns - gpu->at_ns) * 1e-9;
    for (int i = 0; i < MAX_SEGMENTS && left > 0.0; i++)
        left -= segment(model, gpu, left);
    gpu->at_ns = until_ns;
}

void twin_advance(const struct twin_model *model, struct twin_gpu *gpu, int64_t now_ns)
{
    if (now_ns <= gpu->at_ns)
        return;
    if (now_ns - gpu->at_ns > 2 * REPLAY_NS)
        run(model, gpu, now_ns - REPLAY_NS);
    while (gpu->at_ns < now_ns) {
        int64_t phase = gpu->at_ns % SENSOR_PERIOD_NS;
        int64_t opens = SENSOR_PERIOD_NS - SENSOR_WINDOW_NS;
        int64_t next = gpu->at_ns - phase + (phase < opens ? opens : SENSOR_PERIOD_NS);
        if (next > now_ns) {
            run(model, gpu, now_ns);
            break;
        }
        run(model, gpu, next);
        if (phase < opens) {
            gpu->window_energy_j = gpu->energy_j;
        } else {
            gpu->sample_w = (gpu->energy_j - gpu->window_energy_j) / (SENSOR_WINDOW_NS * 1e-9);
            gpu->average_w = (gpu->energy_j - gpu->tick_energy_j[gpu->tick]) / (SENSOR_PERIOD_NS * 1e-9 * TWIN_AVERAGE_TICKS);
            gpu->tick_energy_j[gpu->tick] = gpu->energy_j;
            gpu->tick = (gpu->tick + 1) % TWIN_AVERAGE_TICKS;
        }
    }
}

void twin_forget_settings(const struct twin_model *model, struct twin_gpu *gpu)
{
    gpu->management_mw = model->default_limit_mw;
    gpu->lock_min_mhz = gpu->lock_max_mhz = 0;
    twin_retarget(model, gpu);
}

void twin_initial(const struct twin_model *model, int64_t now_ns, struct twin_gpu *gpu)
{
    memset(gpu, 0, sizeof *gpu);
    gpu->at_ns = now_ns;
    gpu->power_w = gpu->demand_w = gpu->sample_w = gpu->average_w = model->idle_w;
    gpu->demand_mhz = model->max_clock_mhz;
    gpu->ceiling_w = CEILING_OPEN * model->max_limit_mw / 1000.0;
    gpu->temperature_c = model->ambient_c + model->kelvin_per_watt * model->idle_w;
    gpu->persistence = model->boot_persistence;
    /* As if it had idled for ever: the average and the sensor's window start true. */
    int64_t phase = now_ns % SENSOR_PERIOD_NS;
    for (int i = 0; i < TWIN_AVERAGE_TICKS; i++)
        gpu->tick_energy_j[i] = -model->idle_w * ((double)phase * 1e-9 + (TWIN_AVERAGE_TICKS - 1 - i) * SENSOR_PERIOD_NS * 1e-9);
    if (phase > SENSOR_PERIOD_NS - SENSOR_WINDOW_NS)
        gpu->window_energy_j = -model->idle_w * (double)(phase - SENSOR_PERIOD_NS + SENSOR_WINDOW_NS) * 1e-9;
    twin_forget_settings(model, gpu);
}

uint32_t twin_sm_clock_mhz(const struct twin_model *model, const struct twin_gpu *gpu)
{
    if (twin_is_idle(model, gpu))
        return gpu->lock_max_mhz && gpu->lock_min_mhz > model->idle_clock_mhz ? gpu->lock_min_mhz : model->idle_clock_mhz;
    uint32_t mhz = allowed_mhz(gpu);
    if (gpu->ceiling_w < gpu->uncapped_w) {
        double full = curve(model, fraction(model, mhz));
        double share = (gpu->ceiling_w - model->idle_w) / (gpu->uncapped_w - model->idle_w);
        double capped = inverse_curve(model, full * (share > 0.0 ? share : 0.0)) * model->max_clock_mhz;
        if (capped < mhz)
            mhz = (uint32_t)capped;
    }
    mhz -= mhz % model->clock_step_mhz;
    return mhz < model->min_clock_mhz ? model->min_clock_mhz : mhz;
}

uint64_t twin_event_reasons(const struct twin_model *model, const struct twin_gpu *gpu)
{
    if (gpu->ceiling_w < gpu->uncapped_w)
        return nvmlClocksEventReasonSwPowerCap;
    return twin_is_idle(model, gpu) ? nvmlClocksEventReasonGpuIdle : nvmlClocksEventReasonNone;
}

uint32_t twin_sensor_mw(const struct twin_model *model, double watts)
{
    if (watts < 0.0)
        watts = 0.0;
    return (uint32_t)llround(watts * 1000.0 / model->sensor_step_mw) * model->sensor_step_mw;
}
